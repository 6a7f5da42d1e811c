from tests.intake.test_switches import *
async def test_dbg(stage, truth):
    stage.pbx.truth = Truth()
    stage.pbx.down = True
    steps = by_time(session(FLAKY))
    stage.pbx.clock = steps[0][0]
    await stage.start()
    import services.intake.door.switches as sw
    log=[]
    orig=Exchange._tell
    async def tell(self, facts, position):
        for f in facts: log.append((len(log), f.key, f.body))
        await orig(self, facts, position)
    Exchange._tell=tell
    await stage.play(steps)
    await stage.pbx.reopen(LAST)
    await stage.read_through(LAST)
    told = await stage.told()
    got=stays(folded(told))
    bad=[c for c in got if got[c]!=truth.get(c)]
    print("BAD", len(bad), bad)
    for c in bad[:2]:
        print("=====",c,got[c],truth.get(c))
        for n,k,b in log:
            if getattr(b,'call_id','')==c and type(b).__name__ not in('CallPositioned','AgentOffered'): print(n,type(b).__name__,b.occurred_at.timestamp(),getattr(b,'visit',''),getattr(b,'reason',''), k[:60])
        leg=[x for x in LOG.splitlines() if c.split('.')[0] in x]
        print("\n".join(leg[:6]))
    for n,k,b in log:
        if isinstance(b, telephony.SourceInterrupted): print(n,b.reason,b.gap_from.timestamp(),b.gap_to.timestamp())
