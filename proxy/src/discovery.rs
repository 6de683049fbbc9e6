//! placeholder while discovery is being written
#[derive(Clone)]
pub struct Destinations;
impl Destinations {
    pub fn request(&self, _a: std::net::SocketAddr) {}
    pub fn is_connected(&self) -> bool {
        false
    }
}
