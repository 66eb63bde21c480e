"""The diffusion process: noise levels, the split U-Net, and the steps between a noisy latent and an image.

Files in reading order:

- `schedule`: signal levels alpha_bar by timestep, and the timestep sequences of DDIM
- `prediction`: what a net predicts of a noisy latent, and the noise that follows from it
- `unet`: a frozen diffusers U-Net, split at its bottleneck into encode and decode
- `process`: DDIM inversion, the asymmetric (Asyrp) steps, and quality boosting
- `noise`: counter-based noise that depends on the seed, the image, the edit and the timestep only
"""
