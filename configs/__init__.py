"""YAML recipes, packaged so that an installed attnzoo finds them."""
