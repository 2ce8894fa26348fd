"""Writes vglm.json, the Grafana dashboard: python deploy/grafana/make_dashboard.py [--prefix vllm] [--output FILE]

What it shows is in panels.py. tests/deploy runs every query of it against a real Prometheus that scrapes a real server.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from panels import ROWS, Panel

WIDTH = 24  # of Grafana's grid
SOURCE = {"type": "prometheus", "uid": "${datasource}"}


def dashboard(prefix: str = "vglm") -> dict[str, Any]:
    """The dashboard as Grafana reads it, for metrics of this prefix."""
    panels: list[dict[str, Any]] = []
    y = 0
    for row in ROWS:
        panels.append(
            {
                "type": "row",
                "title": row.title,
                "collapsed": False,
                "panels": [],
                "id": len(panels) + 1,
                "gridPos": {"x": 0, "y": y, "w": WIDTH, "h": 1},
            }
        )
        x, y, height = 0, y + 1, 0
        for panel in row.panels:
            if x + panel.width > WIDTH:
                x, y = 0, y + height
            place = {"x": x, "y": y, "w": panel.width, "h": panel.height}
            panels.append(_panel(panel, prefix, place, len(panels) + 1))
            x, height = x + panel.width, panel.height
        y += height
    return {
        "title": "vGLM" if prefix == "vglm" else f"vGLM ({prefix} names)",
        "uid": f"{prefix}-server",
        "description": "A vGLM server: requests, latencies, scheduling, KV cache, HTTP and its process.",
        "tags": ["vglm", "llm"],
        "schemaVersion": 39,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-30m", "to": "now"},
        "templating": {"list": _variables(prefix)},
        "annotations": {"list": []},
        "panels": panels,
    }


def _panel(panel: Panel, prefix: str, place: dict[str, int], number: int) -> dict[str, Any]:
    targets = [
        {
            "refId": chr(ord("A") + i),
            "datasource": SOURCE,
            "expr": expression.replace("P:", f"{prefix}:"),
            "legendFormat": legend,
            **({"format": "heatmap"} if panel.kind == "heatmap" else {}),
        }
        for i, (expression, legend) in enumerate(panel.queries)
    ]
    return {
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "id": number,
        "gridPos": place,
        "datasource": SOURCE,
        "targets": targets,
        "fieldConfig": {"defaults": _field(panel), "overrides": []},
        "options": _options(panel),
    }


def _field(panel: Panel) -> dict[str, Any]:
    steps: list[dict[str, Any]] = [{"color": "green", "value": None}]
    if panel.red_above is not None:
        steps.append({"color": "red", "value": panel.red_above})
    if panel.red_below is not None:
        steps = [{"color": "red", "value": None}, {"color": "green", "value": panel.red_below}]
    made: dict[str, Any] = {"unit": panel.unit, "thresholds": {"mode": "absolute", "steps": steps}}
    if panel.kind == "timeseries":
        stacking = {"mode": "normal" if panel.stacked else "none", "group": "A"}
        made["min"] = 0
        made["custom"] = {
            "fillOpacity": 30 if panel.stacked else 5,
            "showPoints": "never",
            "stacking": stacking,
        }
    if panel.top is not None:
        made["max"] = panel.top
    return made


def _options(panel: Panel) -> dict[str, Any]:
    if panel.kind == "stat":
        return {"colorMode": "value", "graphMode": "area", "reduceOptions": {"calcs": ["lastNotNull"]}}
    if panel.kind == "heatmap":
        return {
            "calculate": False,
            "yAxis": {"unit": panel.unit},
            "color": {"mode": "scheme", "scheme": "Blues", "steps": 64},
        }
    return {
        "legend": {"displayMode": "list", "placement": "bottom"},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _variables(prefix: str) -> list[dict[str, Any]]:
    running = f"{prefix}:num_requests_running"
    labels = {"job": "", "instance": '{job=~"$job"}', "model_name": '{job=~"$job", instance=~"$instance"}'}
    source = {"name": "datasource", "label": "Data source", "type": "datasource", "query": "prometheus"}
    return [source] + [
        {
            "name": label,
            "type": "query",
            "datasource": SOURCE,
            "query": {"query": f"label_values({running}{chosen}, {label})", "refId": label},
            "refresh": 2,
            "multi": True,
            "includeAll": True,
            "allValue": ".*",
            "current": {"text": "All", "value": "$__all"},
        }
        for label, chosen in labels.items()
    ]


def main() -> None:
    """Write the file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--prefix", default="vglm", help="of the metrics, as given to vglm serve --metrics-prefix"
    )
    parser.add_argument("--output", type=Path, default=Path(__file__).with_name("vglm.json"))
    options = parser.parse_args()
    options.output.write_text(json.dumps(dashboard(options.prefix), indent=1) + "\n")


if __name__ == "__main__":
    main()
