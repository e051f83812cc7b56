"""Commands that only read must answer at once: none of the heavy packages may be imported on their way."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from storage.registry import Registry

HEAVY = {"dvc", "mlflow", "prefect", "torch", "transformers", "pandas", "matplotlib", "accelerate"}

READING = """
import json, sys
from pathlib import Path
from storage.history import history
from storage.lineage import lineage, outline
from storage.registry import Registry
from storage.views import query

registry = Registry.open(Path(sys.argv[1]))
rows = len(history(registry))
labels = sum(1 for _ in query(registry, "SELECT * FROM labels").rows)
text = outline(lineage(registry, "gen/0/student", "both"))
packages = sorted({name.partition(".")[0] for name in sys.modules})
print(json.dumps({"rows": rows, "labels": labels, "text": text, "packages": packages}))
"""


def test_history_query_and_lineage_stay_light(made: dict[int, Registry]) -> None:
    top = Path(__file__).resolve().parents[2]
    command = [sys.executable, "-c", READING, str(made[1].root)]
    result = subprocess.run(command, cwd=top, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    answer = json.loads(result.stdout)
    assert (answer["rows"], answer["labels"]) == (1, 4)
    assert answer["text"].startswith("gen/0/student")
    assert HEAVY & set(answer["packages"]) == set()
