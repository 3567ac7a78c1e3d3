# paper: mIoU 49.4
_base_ = './upernet_swin-s_8xb2-160k_ade20k-512x512.py'
model = dict(
    backbone=dict(
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        init_cfg=dict(checkpoint='work_dirs/swin-s_moto_8xb128-300e_in1k/epoch_300.pth')))
