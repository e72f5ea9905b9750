"""What a step, a run and a finding hold, and how they are stored and read. numpy and protobuf, no torch."""
