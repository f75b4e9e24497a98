"""``python -m gda.models.export RUN_FOLDER``: writes a finished run's student for use elsewhere."""

import runpy

if __name__ == "__main__":
    # By name: what defines models imports nothing above itself, and this command reads runs and data.
    runpy.run_module("gda.interchange.export_student", run_name="__main__")
