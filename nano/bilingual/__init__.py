"""The generator of MiniCPM-nano v2: English and Chinese texts rendered from one semantic plan each."""
