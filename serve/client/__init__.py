"""A client of the endpoint: pictures and questions in, ``padt.Prediction`` out. Needs httpx, and neither torch nor Ray.

>>> from serve.client import Client
>>> client = Client("http://127.0.0.1:8000")
>>> client.refer("photo.jpg", "the red circle").objects
"""

from serve.client.asynchronous import AsyncClient
from serve.client.waiting import Client
from serve.client.wire import Options, ServedModel, StreamEvent

__all__ = ["AsyncClient", "Client", "Options", "ServedModel", "StreamEvent"]
