"""Parts of ``padt evaluate``: what is asked, how it is answered, and what is left behind."""
