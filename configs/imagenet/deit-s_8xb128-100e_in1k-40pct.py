# paper: top-1 71.6; it does not name the trunk
_base_ = './deit-s_8xb128-300e_in1k.py'
epochs = 100
train_dataloader = dict(dataset=dict(fraction=0.4))
param_scheduler = dict(epochs=epochs)
train_cfg = dict(max_epochs=epochs)
