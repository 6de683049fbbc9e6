//! What tests, demo and benchmarks share.

pub mod app;
pub mod capture;
pub mod cluster;
pub mod demo;
pub mod e2e;
pub mod echo;
pub mod faults;
pub mod lab;
pub mod load;
pub mod real;
