"""The diffusion process: noise levels, the split U-Net, and the steps between a noisy latent and an image.

Files in reading order:

- `schedule`: signal levels alpha_bar by timestep, and the timestep sequences of DDIM
- `prediction`: what a net predicts of a noisy latent, and the noise that follows from it
- `unet`: a frozen diffusers U-Net, split at its bottleneck into encode and decode
- `moves`: the names of the solvers, and the timesteps that a move passes
- `process`: DDIM inversion, the asymmetric (Asyrp) steps, and quality boosting
- `edit_weights`: what an edit weighs in a move of any length
- `dpm_solver`: DPM-Solver++(2M) in both directions of time, and edits that are anchored to the inversion
- `solvers`: the processes that a run can choose from
- `noise`: counter-based noise that depends on the seed, the image, the edit and the timestep only
"""
