"""The HTML report and the README's figure: read from result files alone, so they show what was computed.

One file without network: plots are inline SVG drawn here, images are inline PNG, text is set in the reader's own fonts.
"""
