"""The benchmark: proxyshim compared with nginx's mail proxy and HAProxy, in one run.

``make bench`` runs it.  docs/explanation/performance.md explains what it measures and how.
"""
