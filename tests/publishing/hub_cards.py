"""The Hub's own check of a card's metadata, as far as its documentation says."""

import re

import yaml

LICENSES = ("apache-2.0", "mit", "bsd-3-clause", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "gpl-3.0", "openrail", "other")
PIPELINES = ("text-generation", "fill-mask", "text-classification", "token-classification", "question-answering",
             "feature-extraction")  # fmt: skip


def card_errors(content):
    """Return what the Hub's own check of a card finds, as far as its documentation says."""
    match = re.match(r"---\n(.*?)\n---\n", content, re.S)
    try:
        data = yaml.safe_load(match[1]) if match else {}
    except yaml.YAMLError as error:
        return [f"YAML: {error}"]
    errors = []
    if data.get("license") not in (None, *LICENSES):
        errors.append(f'"license" must be one of {LICENSES}')
    languages = data.get("language") or []
    for language in [languages] if isinstance(languages, str) else languages:
        if not re.fullmatch(r"[a-z]{2,3}|code|multilingual", language):
            errors.append('"language" must be an ISO 639-1, 639-2 or 639-3 code')
    if data.get("pipeline_tag") not in (None, *PIPELINES):
        errors.append('"pipeline_tag" must be a known task')
    for name in ("base_model", "datasets"):
        values = data.get(name) or []
        for value in [values] if isinstance(values, str) else values:
            if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", value):
                errors.append(f'"{name}" must be the id of a repository')
    for model in data.get("model-index") or []:
        for result in model["results"]:
            if not {"task", "dataset", "metrics"} <= result.keys() or "type" not in result["task"]:
                errors.append('"model-index" lacks a task, a dataset or metrics')
            elif not {"name", "type"} <= result["dataset"].keys():
                errors.append('"model-index[0].results[0].dataset" lacks a name or a type')
    return errors
