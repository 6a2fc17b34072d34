"""datasette opens every view of a database, as pages and as JSON; argument: the database."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from pathlib import Path

from datasette.app import Datasette


async def opened(path: Path) -> dict[str, list[int]]:
    """Return the status of each view's page, of its JSON, and the rows in it."""
    served = Datasette([str(path)])
    connection = sqlite3.connect(path)
    names = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'view'").fetchall()
    connection.close()
    statuses = {}
    for (name,) in names:
        page = await served.client.get(f"/{path.stem}/{name}")
        rows = await served.client.get(f"/{path.stem}/{name}.json?_shape=array&_size=1000")
        statuses[name] = [page.status_code, rows.status_code, len(rows.json())]
    return statuses


print(json.dumps(asyncio.run(opened(Path(sys.argv[1])))))
