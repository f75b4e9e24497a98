"""``python -m gda.models.import FILE --model NAME --dataset NAME``: takes in weights from elsewhere."""

import runpy

if __name__ == "__main__":
    # By name: what defines models imports nothing above itself, and this command reads configs and data.
    runpy.run_module("gda.interchange.import_weights", run_name="__main__")
