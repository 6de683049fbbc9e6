//! Standard output: lines that stay, and on a terminal one line that is drawn over and over.

use std::io::{IsTerminal as _, Write as _, stdout};
use std::sync::Mutex;

use super::clock::{now_us, seconds};

#[derive(Debug)]
pub(super) struct Screen {
    is_terminal: bool,
    started_us: u64,
    live: Mutex<Live>,
}

#[derive(Debug, Default)]
struct Live {
    text: String,
    updates: u64,
}

/// Without a terminal a line is printed for every so many updates.
const UPDATES_PER_LINE: u64 = 10;

impl Screen {
    pub(super) fn new() -> Self {
        let is_terminal = stdout().is_terminal();
        Self { is_terminal, started_us: now_us(), live: Mutex::default() }
    }

    /// A step of the story, with the time since the beginning.
    pub(super) fn tell(&self, text: &str) {
        let at_s = seconds(now_us().saturating_sub(self.started_us));
        self.say(&format!("{at_s:6.1} s  {text}"));
    }

    /// A line, or several, that stay.
    pub(super) fn say(&self, text: &str) {
        let live = self.live.lock().expect("nothing panics while drawing");
        if self.is_terminal && !live.text.is_empty() {
            self.print(&format!("\r\x1b[K{text}\n{}", live.text));
        } else {
            self.print(&format!("{text}\n"));
        }
    }

    /// Replaces the live line; called every 100 ms.
    pub(super) fn show(&self, text: &str) {
        let mut live = self.live.lock().expect("nothing panics while drawing");
        live.updates += 1;
        if self.is_terminal {
            text.clone_into(&mut live.text);
            self.print(&format!("\r\x1b[K{text}"));
        } else if live.updates.is_multiple_of(UPDATES_PER_LINE) {
            self.print(&format!("{text}\n"));
        }
    }

    /// Ends the live line.
    pub(super) fn settle(&self) {
        let mut live = self.live.lock().expect("nothing panics while drawing");
        if self.is_terminal && !live.text.is_empty() {
            self.print("\n");
        }
        live.text.clear();
    }

    fn print(&self, text: &str) {
        // Whoever closed our output does not want to read it.
        let mut out = stdout().lock();
        let _ = out.write_all(text.as_bytes());
        let _ = out.flush();
    }
}
