//! Measures, as ratios
