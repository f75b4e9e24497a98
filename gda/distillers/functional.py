"""The losses as pure functions on tensors; each is explained in the module it comes from.

=====================================  =================================================
``kd``                                 :mod:`gda.distillers.kd`
``dkd``, ``dkd_parts``                 :mod:`gda.distillers.dkd`
``aug_conf``                           :mod:`gda.distillers.aug_conf`
``adapt_conf``                         :mod:`gda.distillers.adapt_conf`
``nkd``, ``nkd_parts``                 :mod:`gda.distillers.nkd`
``dist``, ``dist_parts``               :mod:`gda.distillers.dist`
``ttm``, ``wttm``                      :mod:`gda.distillers.ttm`
``mlkd``                               :mod:`gda.distillers.mlkd`
``fisher_rao``                         :mod:`gda.distillers.fisher_rao`
``sinkhorn``                           :mod:`gda.distillers.sinkhorn`
``sinkd``                              :mod:`gda.distillers.sinkd`
``wkd_l``                              :mod:`gda.distillers.wkd_l`
``rkd_distance``, ``rkd_angle``        :mod:`gda.distillers.rkd`
``pkt``                                :mod:`gda.distillers.pkt`
``sp``                                 :mod:`gda.distillers.sp`
``cc``                                 :mod:`gda.distillers.cc`
``crd``                                :mod:`gda.distillers.crd`
``fitnet``                             :mod:`gda.distillers.fitnet`
``at``                                 :mod:`gda.distillers.at`
``nst``                                :mod:`gda.distillers.nst`
``kdsvd``                              :mod:`gda.distillers.kdsvd`
``ofd``                                :mod:`gda.distillers.ofd`
``vid``                                :mod:`gda.distillers.vid`
``hcl``                                :mod:`gda.distillers.review_kd`
``srd``                                :mod:`gda.distillers.srd`
``ofa``                                :mod:`gda.distillers.ofa`
``standardised``                       :mod:`gda.distillers.lskd`
=====================================  =================================================

Logits are ``(batch, classes)``, student first, teacher second. Results are unweighted scalars, in
float32 or better, unless said otherwise. Gradients flow into the student only.
"""

from gda.distillers.adapt_conf import adapt_conf
from gda.distillers.at import at
from gda.distillers.aug_conf import aug_conf
from gda.distillers.cc import cc
from gda.distillers.crd import crd
from gda.distillers.dist import dist, dist_parts
from gda.distillers.dkd import dkd, dkd_parts
from gda.distillers.fisher_rao import fisher_rao
from gda.distillers.fitnet import fitnet
from gda.distillers.kd import kd
from gda.distillers.kdsvd import kdsvd
from gda.distillers.lskd import standardised
from gda.distillers.mlkd import mlkd
from gda.distillers.nkd import nkd, nkd_parts
from gda.distillers.nst import nst
from gda.distillers.ofa import ofa
from gda.distillers.ofd import ofd
from gda.distillers.pkt import pkt
from gda.distillers.review_kd import hcl
from gda.distillers.rkd import rkd_angle, rkd_distance
from gda.distillers.sinkd import sinkd
from gda.distillers.sinkhorn import sinkhorn
from gda.distillers.sp import sp
from gda.distillers.srd import srd
from gda.distillers.ttm import ttm, wttm
from gda.distillers.vid import vid
from gda.distillers.wkd_l import wkd_l

__all__ = [
    "adapt_conf",
    "at",
    "aug_conf",
    "cc",
    "crd",
    "dist",
    "dist_parts",
    "dkd",
    "dkd_parts",
    "fisher_rao",
    "fitnet",
    "hcl",
    "kd",
    "kdsvd",
    "mlkd",
    "nkd",
    "nkd_parts",
    "nst",
    "ofa",
    "ofd",
    "pkt",
    "rkd_angle",
    "rkd_distance",
    "sinkd",
    "sinkhorn",
    "sp",
    "srd",
    "standardised",
    "ttm",
    "vid",
    "wkd_l",
    "wttm",
]
