"""mmdet beside a current torch, with no compiler: its programs, a stand-in for compiled code, and our backbones."""
