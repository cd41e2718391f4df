//! What the mesh is, and every decision about a connection
