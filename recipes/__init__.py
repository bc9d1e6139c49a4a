"""The recipes that come with qkd, one YAML file each; read them with importlib.resources."""
