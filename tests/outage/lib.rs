//! Nothing of its own: see `hours.rs`, and `simulation.rs`, which meshd compiles with its feature `virtual-time`.
