from __future__ import annotations

from instainfer.cluster import ray

ray.main()
