# Read by hf-doc-builder where it turns pages into notebooks.

INSTALL_CONTENT = """
# diffusers_lasers installation
! pip install diffusers_lasers
"""

notebook_first_cells = [{"type": "code", "content": INSTALL_CONTENT}]
