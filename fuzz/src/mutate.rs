//! Changes inputs: bits, bytes, pieces of other inputs, and words that mean something to the target.
//! The same seed makes the same changes.

/// No input grows beyond this.
const MAX_INPUT: usize = 64 * 1024;
/// Changes to one input at most.
const MAX_CHANGES: u64 = 6;
/// Bytes at the edges of what parsers tell apart.
const EDGES: [u8; 12] = [0, 1, 9, 10, 13, 32, 34, 47, 58, 127, 128, 255];

/// Makes new inputs of old ones.
pub struct Mutator {
    state: u64,
    words: &'static [&'static [u8]],
}

impl Mutator {
    /// Makes the same inputs for the same `seed`.
    #[must_use]
    pub fn new(seed: u64, words: &'static [&'static [u8]]) -> Self {
        Self { state: seed, words }
    }

    /// A changed copy of one of `pool`, which is not empty.
    pub fn change(&mut self, pool: &[Vec<u8>]) -> Vec<u8> {
        let mut input = pool[self.below(pool.len())].clone();
        for _ in 0..=self.random() % MAX_CHANGES {
            self.change_once(&mut input, pool);
        }
        input.truncate(MAX_INPUT);
        input
    }

    fn change_once(&mut self, input: &mut Vec<u8>, pool: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let inside = at.min(input.len().saturating_sub(1));
        match self.random() % 9 {
            0 if !input.is_empty() => input[inside] ^= 1 << (self.random() % 8),
            1 if !input.is_empty() => input[inside] = EDGES[self.below(EDGES.len())],
            2 => input.insert(at, EDGES[self.below(EDGES.len())]),
            3 | 4 if !self.words.is_empty() => {
                let word = self.words[self.below(self.words.len())];
                input.splice(at..at, word.iter().copied());
            }
            5 => {
                let end = at + self.below(input.len() - at + 1).min(32);
                input.drain(at..end);
            }
            6 => {
                let end = at + self.below(input.len() - at + 1).min(64);
                let piece = input[at..end].to_vec();
                input.splice(at..at, piece);
            }
            7 => input.truncate(at),
            _ => {
                let other = &pool[self.below(pool.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
        }
    }

    /// Below `n`, which is not 0.
    fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.random() % n as u64).unwrap_or(0)
    }

    /// xorshift64*.
    fn random(&mut self) -> u64 {
        let mut x = self.state | 1;
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.state = x;
        x.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }
}

#[test]
fn changes_are_bounded_and_repeatable() {
    let pool = vec![b"GET / HTTP/1.1\r\n\r\n".to_vec(), vec![b'x'; MAX_INPUT]];
    let make = |seed| {
        let mut mutator = Mutator::new(seed, &[b"Host: a\r\n"]);
        (0..2000).map(|_| mutator.change(&pool)).collect::<Vec<_>>()
    };
    let made = make(7);
    assert!(made.iter().all(|input| input.len() <= MAX_INPUT));
    assert_eq!(made, make(7));
    assert_ne!(made, make(9));
    assert!(made.iter().any(|input| input.windows(9).any(|piece| piece == b"Host: a\r\n")));
}
