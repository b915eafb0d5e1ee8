"""Run the functions of the other packages on a Ray cluster; no mathematics is in this package.

Of the other packages, only `submission` imports Ray.
"""
