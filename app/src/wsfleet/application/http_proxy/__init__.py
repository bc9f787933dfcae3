"""The HTTP proxy: a backend in any language, asked with Centrifugo's requests.

Source: https://centrifugal.dev/docs/server/proxy
"""
