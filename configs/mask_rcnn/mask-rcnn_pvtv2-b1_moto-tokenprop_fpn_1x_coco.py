# paper: box AP 42.9, mask AP 39.4
_base_ = './mask-rcnn_pvtv2-b1_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        token_prop=dict(),
        init_cfg=dict(checkpoint='work_dirs/pvtv2-b1_moto-tokenprop_8xb128-300e_in1k/epoch_300.pth')))
custom_hooks = [dict(type='mmtok.TokenPropHook')]
