"""Drive a sweep in one process: start trials on Ray, record what they report, and choose the champion."""
