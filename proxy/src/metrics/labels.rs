//! The closed sets that labels are made of.

use crate::error::Reason;

/// A label with a closed set of values.
pub trait Label: Copy + 'static {
    /// Every value, in the order of their indexes.
    const ALL: &'static [Self];
    /// Position in [`Self::ALL`].
    fn index(self) -> usize;
    /// The label's value.
    fn name(self) -> &'static str;
}

macro_rules! labels {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $label:literal,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum $name { $($(#[$variant_doc])* $variant,)* }

        impl $name {
            /// The label's value.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Self::$variant => $label,)* }
            }
        }

        impl Label for $name {
            const ALL: &'static [Self] = &[$(Self::$variant,)*];

            fn index(self) -> usize {
                self as usize
            }

            fn name(self) -> &'static str {
                self.name()
            }
        }
    };
}

labels! {
    /// Seen from the application beside the proxy.
    Direction {
        /// From it.
        Outbound = "outbound",
        /// To it.
        Inbound = "inbound",
    }
}

labels! {
    /// How a connection is secured.
    Tls {
        /// Both sides proved their identity.
        Mutual = "mutual",
        /// Plaintext, or TLS that is not the mesh's.
        None = "none",
    }
}

labels! {
    /// What became of a failed attempt.
    Retry {
        /// Tried again.
        Made = "made",
        /// The budget of retries had no room.
        NoBudget = "no-budget",
        /// Enough attempts were made.
        Exhausted = "exhausted",
        /// The body was sent and not kept.
        BodyGone = "body-gone",
        /// The application may have acted and the request is not idempotent.
        NotIdempotent = "not-idempotent",
        /// The policy does not name this failure.
        NotRetryable = "not-retryable",
    }
}

labels! {
    /// Why an endpoint is taken out for a while.
    Ejection {
        /// The circuit breaker of a TrafficPolicy.
        ConsecutiveFailures = "consecutive-failures",
        /// It refused a connection.
        ConnectRefused = "connect-refused",
    }
}

labels! {
    /// What became of a check that the kubelet asked for.
    ProbeResult {
        /// The application passed.
        Ok = "ok",
        /// It did not.
        Failed = "failed",
        /// It was not made: nobody declared it, or who asked is not the kubelet.
        Refused = "refused",
    }
}

labels! {
    /// What the first bytes of a connection turned out to be.
    Detected {
        /// HTTP/1.
        Http1 = "http1",
        /// HTTP/2 with prior knowledge.
        Http2 = "http2",
        /// Anything else that the client said first.
        Opaque = "opaque",
        /// The server spoke first.
        ServerFirst = "server-first",
        /// Closed before anybody spoke.
        Silent = "silent",
    }
}

labels! {
    /// What a pooled connection speaks.
    PoolProtocol {
        /// HTTP/1.
        Http1 = "http1",
        /// HTTP/2.
        Http2 = "http2",
    }
}

labels! {
    /// Whether a pooled connection carries a request.
    PoolState {
        /// Waits for one.
        Idle = "idle",
        /// Carries at least one.
        Busy = "busy",
    }
}

labels! {
    /// How an attempt to obtain a certificate ended.
    RenewalResult {
        /// In use.
        Ok = "ok",
        /// The one before is kept.
        Failed = "failed",
    }
}

labels! {
    /// A condition of readiness.
    Condition {
        /// The redirection rules stand.
        Redirection = "redirection",
        /// A certificate is held and valid.
        Certificate = "certificate",
        /// A first complete snapshot is in use, with the pod's own inbound policy.
        Snapshot = "snapshot",
        /// The proxy is not on its way out.
        Serving = "serving",
    }
}

impl Label for Reason {
    const ALL: &'static [Self] = Self::ALL;

    fn index(self) -> usize {
        self as usize
    }

    fn name(self) -> &'static str {
        self.name()
    }
}

impl From<heddle_policy::retry::Refusal> for Retry {
    fn from(refusal: heddle_policy::retry::Refusal) -> Self {
        use heddle_policy::retry::Refusal;
        match refusal {
            Refusal::Exhausted => Self::Exhausted,
            Refusal::BodyGone => Self::BodyGone,
            Refusal::NotIdempotent => Self::NotIdempotent,
            Refusal::NotRetryable => Self::NotRetryable,
        }
    }
}
