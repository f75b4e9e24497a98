"""The losses as pure functions on tensors; each is explained in the module it comes from.

=================================  =================================================
``kd``                             :mod:`gda.distillers.kd`
``dkd``, ``dkd_parts``             :mod:`gda.distillers.dkd`
``aug_conf``                       :mod:`gda.distillers.aug_conf`
``adapt_conf``                     :mod:`gda.distillers.adapt_conf`
``fisher_rao``                     :mod:`gda.distillers.fisher_rao`
``sinkhorn``                       :mod:`gda.distillers.sinkhorn`
=================================  =================================================

Logits are ``(batch, classes)``, student first, teacher second. Results are unweighted scalars, in
float32 or better. Gradients flow into the student only.
"""

from gda.distillers.adapt_conf import adapt_conf
from gda.distillers.aug_conf import aug_conf
from gda.distillers.dkd import dkd, dkd_parts
from gda.distillers.fisher_rao import fisher_rao
from gda.distillers.kd import kd
from gda.distillers.sinkhorn import sinkhorn

__all__ = ["adapt_conf", "aug_conf", "dkd", "dkd_parts", "fisher_rao", "kd", "sinkhorn"]
