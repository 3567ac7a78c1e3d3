# paper: box AP 41.8
_base_ = './retinanet_pvtv2-b1_fpn_1x_coco.py'
model = dict(
    backbone=dict(
        tokenizer=dict(type='mmtok.MoToTokenizer'),
        init_cfg=dict(checkpoint='work_dirs/pvtv2-b1_moto_8xb128-300e_in1k/epoch_300.pth')))
