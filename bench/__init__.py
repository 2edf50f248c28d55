"""The benchmark: proxyshim beside nginx's mail proxy and HAProxy, in one run.

``make bench`` runs it; docs/explanation/performance.md says what is measured and how.
"""
