"""Models: finding them by name, converting raw checkpoints to diffusers folders, loading and checking them.

Files in reading order:

- `config`: the JSON files of a model, which somebody else wrote
- `folder`: a diffusers folder on this machine, its weights and their digest
- `find`: the folder of a model that is named by short name, path, checkpoint or hub id
- `scheduler`: the noise levels and the prediction type that scheduler_config.json describes
- `load`: the frozen net and its noise schedule on a device
- `precision`: in which precision a net computes, and which one suits a device
- `selfcheck`: the check that a net predicts the noise of its schedule
- `checkpoint`: the state dict of a U-Net in a raw checkpoint file
- `layout`: the architecture that a state dict implies
- `convert`: a raw checkpoint to a diffusers net, strictly
- `ho`: layout and tensor names of the Ho (DDPM++) family
- `adm`: layout and tensor names of the iDDPM and ADM family
"""
