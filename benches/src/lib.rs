//! The comparison of Dragonfruit with Go Pitaya: the parts of the programs `compare` and `profile`.
//!
//! Both systems run on this machine, each with its own nats-server, and get the same loads in turn. What is where: programs
//! and their ends in `programs`, the two systems in `systems`, the loads in `scenario`, one measured run in `run`, the
//! machine and its noise in `machine`, medians in `figures`, and how they are shown in `table` and `picture`. `flame` draws where a program's time went.

pub mod figures;
pub mod flame;
mod listener;
pub mod machine;
pub mod picture;
pub mod programs;
pub mod run;
pub mod scenario;
pub mod systems;
pub mod table;
