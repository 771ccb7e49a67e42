"""What the tests share: commands in this process, preloaded forks, a Hub on loopback, small trained sources."""
