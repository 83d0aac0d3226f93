"""The names of the files in a checkpoint's folder, once for all rooms."""

CONFIG_FILE, ADAPTER_FILE, OVERRIDES_FILE = "config.json", "adapter_config.json", "config_overrides.json"
MODEL_WEIGHTS, ADAPTER_WEIGHTS, GGUF_WEIGHTS = "model.safetensors", "adapter_model.safetensors", "model.gguf"
TOKENIZER_FILE = "tokenizer.json"
METRICS_FILE, RECIPE_FILE, LOG_FILE = "metrics.json", "recipe.yaml", "log.jsonl"
CARD_FILE, CURVE_FILE, PAGE_FILE = "README.md", "curve.png", "report.html"
