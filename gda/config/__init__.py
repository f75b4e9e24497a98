"""What a composed config may say, and the check that runs before any work."""
