"""Write the JSON Schema of results.json from the table that genbound checks it by."""

import json
from pathlib import Path

from genbound.results.schema import json_schema

FILE = Path(__file__).parents[1] / "genbound" / "results" / "results.schema.json"

if __name__ == "__main__":
    FILE.write_text(json.dumps(json_schema(), indent=1) + "\n", encoding="utf-8")
