"""Figures by subject: `progress` (methods), `fitted` (density, latent space), `predictive`, `images`, `holes`.

`style` is their one look.
"""
