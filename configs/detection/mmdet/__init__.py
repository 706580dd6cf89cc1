"""Published detection recipes as configs of mmdet."""
