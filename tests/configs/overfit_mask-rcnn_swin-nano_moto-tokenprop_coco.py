_base_ = ['../../configs/_base_/models/mask-rcnn_swin-nano.py', './overfit_coco.py']
