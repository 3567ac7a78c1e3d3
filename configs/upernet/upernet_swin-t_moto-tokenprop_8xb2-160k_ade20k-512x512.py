# paper: mIoU 46.7
_base_ = './upernet_swin-t_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        token_prop=dict(),
        init_cfg=dict(checkpoint='work_dirs/swin-t_moto-tokenprop_8xb128-300e_in1k/epoch_300.pth')))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
