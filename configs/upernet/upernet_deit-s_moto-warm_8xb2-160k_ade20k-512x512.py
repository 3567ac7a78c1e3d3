# No row of the paper: MoTo behind a gate of 0, so that the plain row's checkpoint starts exactly as it was
_base_ = './upernet_deit-s_8xb2-160k_ade20k-512x512.py'
model = dict(backbone=dict(tokenizer=dict(type='mmtok.MoToTokenizer', placement='token')))
