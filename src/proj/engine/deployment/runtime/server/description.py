"""What a bundle takes and answers: for `/schema`, for OpenAPI, and for the page."""

import base64
import io
from collections.abc import Mapping
from typing import Any

Spec = Mapping[str, Any]
Json = dict[str, Any]

# Categories of a column that the description lists.
MAX_CATEGORIES = 100


def describe(spec: Spec) -> Json:
    """Return the columns or the shape of rows, and the names of the answers.

    Args:
        spec: the content of ``bundle.json``.
    """
    inputs, outputs = spec["inputs"], spec["outputs"]
    description = {"kind": inputs["kind"], "task": outputs["task"], "answers": _answers(outputs)}
    if inputs["kind"] == "table":
        return description | {"columns": _columns(inputs)}
    if inputs["kind"] == "images":
        size = {name: inputs[name] for name in ("channels", "height", "width")}
        return description | size
    return description | {"shape": inputs["shape"], "dtype": inputs["dtype"]}


def _columns(inputs: Spec) -> list[Json]:
    categories = {column["source"]: column["categories"] for column in inputs["categorical"]}
    ranges = {
        column["source"]: (column["low"], column["high"])
        for column in inputs["numeric"]
        if column["kind"] == "number"
    }
    columns = []
    for source in inputs["sources"]:
        name = source["name"]
        low, high = ranges.get(name, (None, None))
        column = {"name": name, "type": source["reading"], "example": source["example"]}
        column |= {"missing": source["missing"], "low": low, "high": high}
        columns.append(column | {"categories": categories.get(name, [])[:MAX_CATEGORIES]})
    return columns


def _answers(outputs: Spec) -> list[Json]:
    """Return name, type and possible labels of each answer; of a set those of its items."""
    return [*_predictions(outputs), *_uncertainty(outputs)]


def _uncertainty(outputs: Spec) -> list[Json]:
    """Return the answers that are intervals or sets."""
    task, names = outputs["task"], outputs["names"]
    several = task in ("regression", "multilabel") and len(names) > 1
    suffixes = [f"_{name}" for name in names] if several else [""]
    if not outputs.get("conformal_limits"):
        return []
    if task == "regression":
        limits = [f"{side}{suffix}" for side in ("low", "high") for suffix in suffixes]
        return [{"name": name, "type": "number", "labels": []} for name in limits]
    labels = [0, 1] if task == "multilabel" else list(outputs["classes"])
    return [{"name": f"set{suffix}", "type": "array", "labels": labels} for suffix in suffixes]


def _predictions(outputs: Spec) -> list[Json]:
    task, names = outputs["task"], outputs["names"]
    if task in ("binary", "multiclass"):
        labels = list(outputs["classes"])
        return [
            {"name": "prediction", "type": _type(labels), "labels": labels},
            *({"name": f"probability_{name}", "type": "number", "labels": []} for name in names),
        ]
    if task == "numbers":
        return [{"name": name, "type": "number", "labels": []} for name in names]
    suffixes = [f"_{name}" for name in names] if len(names) > 1 else [""]
    is_labels = task == "multilabel"
    answers = [
        {
            "name": f"prediction{suffix}",
            "type": "integer" if is_labels else "number",
            "labels": [0, 1] if is_labels else [],
        }
        for suffix in suffixes
    ]
    if is_labels:
        probabilities = [f"probability{suffix}" for suffix in suffixes]
        answers += [{"name": name, "type": "number", "labels": []} for name in probabilities]
    return answers


def _type(labels: list[Any]) -> str:
    types = {bool: "boolean", int: "integer", float: "number"}
    found = {types.get(type(label), "string") for label in labels}
    return found.pop() if len(found) == 1 else "string"


def example_row(description: Json) -> Any:
    """Return a row that the server answers."""
    if description["kind"] == "table":
        return {column["name"]: column["example"] for column in description["columns"]}
    if description["kind"] == "images":
        return base64.b64encode(_grey_image(description)).decode()
    value: Any = 0 if "int" in description["dtype"] else 0.5
    value = value if description["dtype"] != "bool" else False
    for size in reversed(description["shape"]):
        value = [value] * size
    return value


def _grey_image(description: Json) -> bytes:
    from PIL import Image  # Bundles of tables and arrays do without it.

    mode = "L" if description["channels"] == 1 else "RGB"
    size = description["width"], description["height"]
    file = io.BytesIO()
    Image.new(mode, size, "grey").save(file, "PNG")
    return file.getvalue()


def row_schema(description: Json) -> Json:
    """Return the JSON schema of one row."""
    if description["kind"] == "table":
        columns = {column["name"]: _column_schema(column) for column in description["columns"]}
        return {"type": "object", "properties": columns, "required": list(columns)}
    if description["kind"] == "images":
        text = "The content of an image file in base64."
        return {"type": "string", "contentEncoding": "base64", "description": text}
    schema: Json = {"type": "integer" if "int" in description["dtype"] else "number"}
    if description["dtype"] == "uint8":
        schema |= {"minimum": 0, "maximum": 255}
    for size in reversed(description["shape"]):
        schema = {"type": "array", "items": schema, "minItems": size, "maxItems": size}
    return schema


def _column_schema(column: Json) -> Json:
    kind = {"number": "number", "boolean": "boolean"}.get(column["type"], "string")
    texts = []
    if isinstance(column["example"], int | float) and kind == "string":
        kind = "number"  # a date that is written as a number
    if column["low"] is not None:
        texts.append(f"Between {column['low']:g} and {column['high']:g} in training.")
    if column["categories"]:
        listed = ", ".join(map(str, column["categories"][:10]))
        texts.append(f"In training: {listed}{', …' * (len(column['categories']) > 10)}.")
    texts.append("null if it is missing.")
    return {"type": [kind, "null"], "description": " ".join(texts), "examples": [column["example"]]}


def request_body(description: Json) -> Json:
    """Return the OpenAPI description of the body of `/predict`."""
    rows = {"type": "array", "items": row_schema(description)}
    body = {
        "type": "object",
        "properties": {"rows": rows},
        "required": ["rows"],
        "additionalProperties": False,
    }
    example = {"rows": [example_row(description)]}
    content: Json = {"application/json": {"schema": body, "example": example}}
    binary = {"schema": {"type": "string", "format": "binary"}}
    if description["kind"] == "table":
        content["text/csv"] = {"schema": {"type": "string"}, "example": _csv(example["rows"][0])}
        content["application/vnd.apache.parquet"] = binary
    if description["kind"] == "images":
        content["application/octet-stream"] = binary
        files = {"type": "array", "items": binary["schema"], "minItems": 1}
        form = {"type": "object", "properties": {"images": files}, "required": ["images"]}
        content["multipart/form-data"] = {"schema": form}
    return {"required": True, "content": content}


def _csv(row: Json) -> str:
    cells = ["" if value is None else str(value) for value in row.values()]
    quoted = [[f'"{c.replace(chr(34), chr(34) * 2)}"' for c in line] for line in (row, cells)]
    return "".join(",".join(line) + "\n" for line in quoted)


def response(description: Json) -> Json:
    """Return the OpenAPI description of the answer of `/predict`."""
    properties: Json = {}
    for answer in description["answers"]:
        properties[answer["name"]] = {"type": answer["type"]}
        if answer["type"] == "array":
            properties[answer["name"]]["items"] = {"enum": answer["labels"]}
        elif answer["labels"]:
            properties[answer["name"]]["enum"] = answer["labels"]
    row = {"type": "object", "properties": properties, "required": list(properties)}
    body = {
        "type": "object",
        "properties": {"predictions": {"type": "array", "items": row}},
        "required": ["predictions"],
    }
    return {"description": "One answer per row.", "content": {"application/json": {"schema": body}}}
