"""Chats: rows of messages, the text that a template makes of them, its tokens, and the loss on answers alone."""
