"""The local page of `xent view`: a folder of lm-eval's runs as tables, charts, differences and documents."""
