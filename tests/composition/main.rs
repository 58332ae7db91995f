//! Stores made of stores, each of which fails, hangs, dawdles, lies or truncates. Time is the
//! runtime's paused clock: nothing here sleeps.

mod double;
mod joined;
mod mirrored;
mod planned;
