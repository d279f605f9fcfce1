"""The 4-linear form behind the layer, and every derivative of it.

    Q(s, f, W, g) = sum over b, x, i, k, o, c of  g[b,x,o] s[i,k](x) f[b, x + tap_k, c] W[i,o,c]

with coefficients s = s(v), f the features, W the weight and g a cotangent. Its four partials are all there is:

    dQ/dg = apply(s, f, W)             the layer, eq. (17) of Dehmamy et al. 2021
    dQ/df = apply(s, g, W) transposed  the gradient of the features
    dQ/dW = gram(s, f, g)              the gradient of the weight
    dQ/ds = correlate(f, W, g)         the gradient of the coefficients

A partial leaves one slot empty. Its derivative in another slot, contracted with a cotangent u, is the partial that
leaves that other slot empty and has u in the slot that was empty; its tangent is the same partial with the tangent in
its slot. So derivatives of every order, backward and forward, are these four again. The identity term W^0 of the layer
is linear in f, W and g alone: it takes part only while the s slot holds s itself, never a cotangent or tangent of it.

Where a backward pass wants dQ/df and dQ/dW of one cotangent and keeps no record for further derivatives, one operator
gives both, since they can share L_i^T g.
"""

from lconv_fast.form import registration as registration
from lconv_fast.form.fused import finished as finished
from lconv_fast.form.graph import graph_lconv as graph_lconv
from lconv_fast.form.layer import lconv as lconv
