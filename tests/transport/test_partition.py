"""Which partition a key has: the same for our producer and for everybody else's."""

from aiokafka.partitioner import murmur2
from hypothesis import given
from hypothesis import strategies as st

from chassis.transport import partition_for


@given(st.binary(max_size=80), st.integers(1, 64))
def test_a_key_has_the_partition_that_kafkas_own_clients_give_it(key, partitions):
    """Departments and telephony write with other clients: a case must not change its partition."""
    assert partition_for(key, partitions) == (murmur2(key) & 0x7FFFFFFF) % partitions
